"""What opens disks and gets keys without the console: files, passphrases and a key server, and nothing else.

No Django, database, broker or settings in here (import-linter keeps it so): nobody is to need a running console to get
at their data. `console/management/commands/disk.py` is its command line. Errors are those of `inventory/errors.py`.
"""
