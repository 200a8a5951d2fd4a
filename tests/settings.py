"""The product's settings with the environment that the tests need: nothing in them is used outside tests."""

import atexit
import os
import shutil
import tempfile
from pathlib import Path

_given = os.environ.get("BARTIZAN_TEST_STATE")  # noqa: TID251
_state = Path(_given or tempfile.mkdtemp(prefix="bartizan-test-"))
if not _given:
    atexit.register(shutil.rmtree, _state, ignore_errors=True)
for _name, _value in {
    "BARTIZAN_STATE_DIR": str(_state),
    "BARTIZAN_SECRET_KEY": "tests-only-" + "0" * 40,
    "BARTIZAN_CONSOLE_KEY": "5a" * 32,
    "BARTIZAN_REDIS_URL": "redis://127.0.0.1:1/0",
    "BARTIZAN_LIBVIRT_TEST_DRIVER": "1",
    "BARTIZAN_HOST_WRITE_BACK": "0",
}.items():
    os.environ.setdefault(_name, _value)  # noqa: TID251
for _folder in ("assets", "db", "static"):
    (_state / _folder).mkdir(parents=True, exist_ok=True)

from console.settings import *  # noqa: E402, F403
from console.settings import DATABASES  # noqa: E402

if "sqlite" in DATABASES["default"]["ENGINE"]:
    DATABASES["default"]["TEST"] = {"NAME": str(_state / "db" / "test.sqlite3")}
CACHES = {"default": {"BACKEND": "django.core.cache.backends.locmem.LocMemCache"}}
STORAGES = {
    "default": {"BACKEND": "django.core.files.storage.FileSystemStorage"},
    "staticfiles": {"BACKEND": "django.contrib.staticfiles.storage.StaticFilesStorage"},
}
PASSWORD_HASHERS = [
    "django.contrib.auth.hashers.MD5PasswordHasher"
]  # speed: passwords are not what these tests are about
CELERY_TASK_ALWAYS_EAGER = False
