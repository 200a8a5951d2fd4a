#!/usr/bin/env python3
"""Django's command line; `./bartizan manage ...` calls it with the environment that the settings need."""

import os
import sys

from django.core.management import execute_from_command_line

if __name__ == "__main__":
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "console.settings")  # noqa: TID251  Django's own switch
    # Commands of two words can be written with a hyphen: verify-events.
    if len(sys.argv) > 1 and not sys.argv[1].startswith("-"):
        sys.argv[1] = sys.argv[1].replace("-", "_")
    execute_from_command_line(sys.argv)
