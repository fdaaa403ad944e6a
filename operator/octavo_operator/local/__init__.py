"""The same desired state as in a cluster, as processes on this machine.

`plan` makes the command, by the function that makes the container's arguments; `process` holds one running
`octavo serve`, `replica` keeps one alive, `supervisor` all of them, and `observe` describes them as the cluster would,
for the operator's own `status()`.
"""
