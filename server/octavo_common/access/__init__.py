"""Who may ask for what, as server and gateway share it: keys, their limits, certificates, and files that change."""
