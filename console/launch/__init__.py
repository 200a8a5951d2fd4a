"""Set-up and supervision of a Bartizan installation: what `./bartizan` does once Python and the venv are there.

Nothing here imports Django: the launcher prepares what Django needs (secrets, assets, folders) and runs its commands
as processes, each with the environment it needs and no more.
"""
