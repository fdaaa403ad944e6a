"""Which GPUs this machine has, told by its driver: the control plane has no torch to ask."""

import os
import shutil
import subprocess

LIST_SECONDS = 20.0


def gpu_ids() -> list[str]:
    """Values for CUDA_VISIBLE_DEVICES, one for each GPU that this process may use; none where there is no driver."""
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is not None:
        return [device for device in chosen.split(",") if device and device != "-1"]
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    try:
        listed = subprocess.run([program, "-L"], capture_output=True, text=True, timeout=LIST_SECONDS, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    return [str(index) for index, line in enumerate(listed.stdout.splitlines()) if line.startswith("GPU ")]
