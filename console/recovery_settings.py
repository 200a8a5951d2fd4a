"""Django's settings for `manage disk`, `manage appraise` and `manage verify-inventory`, which need none of the
console's: no secrets, no database, no broker, no environment. The launcher chooses them."""

INSTALLED_APPS = [
    "console.management.commands_only.CommandsOnly",
    "console.management.commands_only.AttestationCommandsOnly",
]
USE_TZ = True
LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {"line": {"format": "%(levelname)s %(name)s %(message)s"}},
    "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "line"}},
    # PyKMIP logs whole messages, keys included, at lower levels.
    "root": {"handlers": ["stderr"], "level": "WARNING"},
}
