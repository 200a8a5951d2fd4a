"""Django's settings. Every choice an operator has is a variable of the environment, read through `env.py`."""

import re
from pathlib import Path
from urllib.parse import quote

import dj_database_url
from celery.schedules import crontab

from console.env import SettingsError, env_bool, env_int, env_list, env_networks, env_path, env_secret, env_str
from console.sign_on.configuration import read_ldap, read_oidc

BASE_DIR = Path(__file__).resolve().parent.parent
STATE_DIR = env_path("BARTIZAN_STATE_DIR")

SECRET_KEY = env_secret("BARTIZAN_SECRET_KEY")
if len(SECRET_KEY) < 40:
    raise SettingsError("BARTIZAN_SECRET_KEY is shorter than 40 characters")
DEBUG = False
ALLOWED_HOSTS = env_list("BARTIZAN_ALLOWED_HOSTS", ["127.0.0.1", "localhost", "[::1]"])
HTTPS = env_bool("BARTIZAN_HTTPS", default=False)
# Whose X-Forwarded-For is believed; see console/source_address.py.
TRUSTED_PROXIES = env_networks("BARTIZAN_TRUSTED_PROXIES")

INSTALLED_APPS = [
    "console",
    "encryption",
    "attestation",
    "inventory",
    "django_htmx",
    "axes",
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "django.contrib.staticfiles",
]
MIDDLEWARE = [
    "django.middleware.security.SecurityMiddleware",
    "whitenoise.middleware.WhiteNoiseMiddleware",
    "console.middleware.Origin",
    "console.middleware.ContentSecurityPolicy",
    "console.middleware.CryptoModules",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "console.middleware.LoginRequired",
    "console.middleware.SecondFactorRequired",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
    "django_htmx.middleware.HtmxMiddleware",
    "console.middleware.ServiceErrors",
    "axes.middleware.AxesMiddleware",
]
ROOT_URLCONF = "console.urls"
WSGI_APPLICATION = "console.wsgi.application"
TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "DIRS": [BASE_DIR / "templates"],
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
                "console.context.shell",
            ],
        },
    }
]

# SQLite: WAL lets readers go on beside the one writer. IMMEDIATE takes the write lock when a transaction begins, so
# that two processes wait for each other (up to the timeout) where a deferred lock would fail at once with "locked".
if database_url := env_secret("DATABASE_URL", required=False):
    DATABASES = {"default": dj_database_url.parse(database_url, conn_max_age=60, conn_health_checks=True)}
else:
    DATABASES = {
        "default": {
            "ENGINE": "django.db.backends.sqlite3",
            "NAME": str(STATE_DIR / "db" / "bartizan.sqlite3"),
            "OPTIONS": {
                "timeout": 30,
                "transaction_mode": "IMMEDIATE",
                "init_command": "PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL; PRAGMA busy_timeout=30000;",
            },
        }
    }
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"

# Redis: a private server on a unix socket at home (REDIS_SOCKET + password), any rediss:// URL in production.
REDIS_PASSWORD = env_secret("BARTIZAN_REDIS_PASSWORD", required=False)
if redis_socket := env_str("BARTIZAN_REDIS_SOCKET", ""):
    _password = quote(REDIS_PASSWORD, safe="")
    BROKER_URL = f"redis+socket://:{_password}@{redis_socket}?virtual_host=0"
    CACHE_URL = f"unix://:{_password}@{redis_socket}?db=1"
elif redis_url := env_secret("BARTIZAN_REDIS_URL", required=False):
    BROKER_URL, CACHE_URL = redis_url, redis_url
else:
    raise SettingsError("set BARTIZAN_REDIS_SOCKET or BARTIZAN_REDIS_URL")
CACHES = {
    "default": {
        "BACKEND": "django.core.cache.backends.redis.RedisCache",
        "LOCATION": CACHE_URL,
        "KEY_PREFIX": "bartizan",
        "OPTIONS": {"serializer": "console.cache.JsonSerializer"},
    }
}

# Messages carry ids only, results are not kept, and a task is acknowledged when it has ended, so that a killed
# worker's message comes again. The visibility timeout is when Redis gives an unacknowledged message out once more:
# it is longer than any job's limit, and a second delivery finds the job claimed and does nothing (inventory/jobs.py).
JOB_TIME_LIMIT_SECONDS = env_int("BARTIZAN_JOB_TIME_LIMIT", 24 * 3600, minimum=60, maximum=7 * 24 * 3600)
CELERY_BROKER_URL = BROKER_URL
CELERY_BROKER_CONNECTION_RETRY_ON_STARTUP = True
CELERY_BROKER_TRANSPORT_OPTIONS = {
    "visibility_timeout": JOB_TIME_LIMIT_SECONDS + 3600,
    # Of who sends a message: a page says soon that the broker is down. Workers connect again for as long as it takes.
    "max_retries": 1,
    "interval_start": 0.2,
    "socket_connect_timeout": 5.0,
}
CELERY_TASK_SERIALIZER = "json"
CELERY_ACCEPT_CONTENT = ["json"]
CELERY_TASK_IGNORE_RESULT = True
CELERY_TASK_ACKS_LATE = True
CELERY_TASK_REJECT_ON_WORKER_LOST = False  # a stale heartbeat brings the job back, with its checkpoint
CELERY_TASK_TIME_LIMIT = JOB_TIME_LIMIT_SECONDS + 60
CELERY_TASK_SOFT_TIME_LIMIT = JOB_TIME_LIMIT_SECONDS
CELERY_TASK_DEFAULT_QUEUE = "control"
CELERY_TASK_CREATE_MISSING_QUEUES = True
CELERY_WORKER_PREFETCH_MULTIPLIER = 1
CELERY_WORKER_HIJACK_ROOT_LOGGER = False
CELERY_WORKER_CANCEL_LONG_RUNNING_TASKS_ON_CONNECTION_LOSS = False
CELERY_TIMEZONE = "UTC"
CELERY_BEAT_SCHEDULE = {
    "resume interrupted jobs": {
        "task": "inventory.resume_interrupted_jobs",
        "schedule": 10.0,
        "options": {"expires": 10},
    },
    "seal the history": {
        "task": "inventory.seal_events",
        "schedule": 10.0,
        "options": {"expires": 10},
    },
    "sign a checkpoint of the history": {
        "task": "inventory.sign_checkpoint",
        "schedule": 60.0,
        "options": {"expires": 60},
    },
    "drop old job rows and console texts": {
        "task": "inventory.prune",
        "schedule": 3600.0,
        "options": {"expires": 600},
    },
    "attest the hosts whose time has come": {
        "task": "attestation.attest_due",
        "schedule": 10.0,
        "options": {"queue": "attestation", "expires": 10},
    },
    "drop old verdicts and evidence": {
        "task": "attestation.prune",
        "schedule": crontab(hour=4, minute=23),
        "options": {"expires": 3600},
    },
    "take over keys of virtual machines that were found": {
        "task": "encryption.adopt_found",
        "schedule": 300.0,
        "options": {"queue": "attestation", "expires": 60},
    },
    "look for leftovers of encrypted VMs": {
        "task": "encryption.find_all_leftovers",
        "schedule": crontab(hour=3, minute=17),
        "options": {"queue": "crypto", "expires": 3600},
    },
    "look whether VMs are what their policies say": {
        "task": "encryption.check_compliance_of_all",
        "schedule": float(env_int("BARTIZAN_COMPLIANCE_CHECK_SECONDS", 3600, minimum=60, maximum=7 * 24 * 3600)),
        "options": {"queue": "attestation", "expires": 60},
    },
    **{
        f"repeat the self-tests of worker {queue}": {
            "task": "encryption.repeat_self_tests",
            "schedule": crontab(hour=2, minute=47),
            "options": {"queue": queue, "expires": 3600},
        }
        for queue in ("attestation", "control", "crypto")
    },
    "look for exported virtual machines": {
        "task": "encryption.look_for_bundles",
        "schedule": 300.0,
        "options": {"queue": "attestation", "expires": 60},
    },
    "look at the key servers": {
        "task": "encryption.check_key_providers",
        "schedule": float(env_int("BARTIZAN_KMS_CHECK_SECONDS", 300, minimum=30, maximum=24 * 3600)),
        "options": {"queue": "attestation", "expires": 60},
    },
    "look which hosts can migrate encrypted to which": {
        "task": "encryption.probe_migrations",
        "schedule": 3600.0,
        "options": {"queue": "attestation", "expires": 600},
    },
    "new keys for VMs whose keys are older than their policies allow": {
        "task": "encryption.rotate_keys",
        "schedule": 3600.0,
        "options": {"expires": 600},
    },
}

# The key that seals what only workers may read (KMS client keys). The web process is started without it.
CONSOLE_KEY = env_secret("BARTIZAN_CONSOLE_KEY", required=False)
if CONSOLE_KEY and not re.fullmatch("[0-9a-fA-F]{64}", CONSOLE_KEY):
    raise SettingsError("BARTIZAN_CONSOLE_KEY must be 64 hexadecimal digits (32 bytes)")
# The FIPS provider: docs/install.md. It is loaded before anything here is read (console/launch/crypto_start.py).
FIPS_MODE = env_str("BARTIZAN_FIPS", "auto")
if FIPS_MODE not in ("auto", "required", "off"):
    raise SettingsError(f"BARTIZAN_FIPS must be auto, required or off, not {FIPS_MODE!r}")
CRYPTO_MODULES_DIR = env_str("BARTIZAN_CRYPTO_MODULES", "")
# SHA-256 of a provider's file -> the certificate that whoever runs this console says it is the build of.
FIPS_VALIDATED = dict(entry.partition("=")[::2] for entry in env_list("BARTIZAN_FIPS_VALIDATED", []))
if not all(re.fullmatch("[0-9a-f]{64}", digest) and number for digest, number in FIPS_VALIDATED.items()):
    raise SettingsError("BARTIZAN_FIPS_VALIDATED must be SHA256=CERTIFICATE,... with 64 lower-case digits each")
KMIP_TIMEOUT_SECONDS = env_int("BARTIZAN_KMIP_TIMEOUT", 10, minimum=1, maximum=300)
# How long a host may take to write what it was sent to its storage; see encryption/services/write_back.py.
HOST_WRITE_BACK_SECONDS = env_int("BARTIZAN_HOST_WRITE_BACK", 40, minimum=0, maximum=3600)
# Where workers put exported VMs, and look for VMs to import; the same folder for all of them.
EXCHANGE_DIR = env_path("BARTIZAN_EXCHANGE_DIR", STATE_DIR / "exchange")
# Where attestation agents register; `manage registrar` listens there.
REGISTRAR_LISTEN = env_str("BARTIZAN_REGISTRAR_LISTEN", "127.0.0.1:8890")
LIBVIRT_TEST_DRIVER = env_bool("BARTIZAN_LIBVIRT_TEST_DRIVER", default=False)

# Who is known elsewhere (console/sign_on). Local users come first: they get in while the directory is down.
OIDC = read_oidc()
LDAP = read_ldap()
AUTHENTICATION_BACKENDS = [
    "axes.backends.AxesStandaloneBackend",
    "django.contrib.auth.backends.ModelBackend",
    *(["console.sign_on.oidc_backend.OidcBackend"] if OIDC else []),
    *(["console.sign_on.ldap_backend.DirectoryBackend"] if LDAP else []),
]
PASSWORD_HASHERS = ["django.contrib.auth.hashers.PBKDF2PasswordHasher"]  # FIPS-approved: fips.md, PBKDF2-HMAC-SHA-256
AUTH_PASSWORD_VALIDATORS = [
    {"NAME": "django.contrib.auth.password_validation.MinimumLengthValidator", "OPTIONS": {"min_length": 12}},
    {"NAME": "django.contrib.auth.password_validation.UserAttributeSimilarityValidator"},
    {"NAME": "django.contrib.auth.password_validation.CommonPasswordValidator"},
]
# Whether users with a password of this console's own must have a second factor: console/second_factor.py.
SECOND_FACTOR = env_str("BARTIZAN_SECOND_FACTOR", "optional")
if SECOND_FACTOR not in ("optional", "required"):
    raise SettingsError(f"BARTIZAN_SECOND_FACTOR must be optional or required, not {SECOND_FACTOR!r}")
LOGIN_URL = "login"
LOGIN_REDIRECT_URL = "home"
LOGOUT_REDIRECT_URL = "login"
# A user name is locked for the address that failed five times, so that nobody can lock out an administrator elsewhere.
AXES_FAILURE_LIMIT = 5
AXES_COOLOFF_TIME = 0.25  # hours
AXES_LOCKOUT_PARAMETERS = [["username", "ip_address"]]
AXES_RESET_ON_SUCCESS = True
AXES_LOCKOUT_CALLABLE = "console.views.login_locked"
AXES_CLIENT_IP_CALLABLE = "console.source_address.of_request"
AXES_VERBOSE = False

SESSION_COOKIE_AGE = 12 * 3600
SESSION_COOKIE_HTTPONLY = True
SESSION_COOKIE_SAMESITE = "Lax"
SESSION_COOKIE_SECURE = HTTPS
CSRF_COOKIE_HTTPONLY = True
CSRF_COOKIE_SAMESITE = "Strict"
CSRF_COOKIE_SECURE = HTTPS
CSRF_FAILURE_VIEW = "console.views.csrf_failure"
CSRF_TRUSTED_ORIGINS = env_list("BARTIZAN_TRUSTED_ORIGINS", [])
SECURE_CONTENT_TYPE_NOSNIFF = True
SECURE_REFERRER_POLICY = "same-origin"
SECURE_CROSS_ORIGIN_OPENER_POLICY = "same-origin"
SECURE_HSTS_SECONDS = 365 * 24 * 3600 if HTTPS else 0
X_FRAME_OPTIONS = "DENY"
# Nobody but the operator knows what else lives below this host's domain (W005, W021), and plain HTTP is served on
# loopback only, else TLS alone (W008).
SILENCED_SYSTEM_CHECKS = ["security.W005", "security.W008", "security.W021"]

LANGUAGE_CODE = "en"
TIME_ZONE = "UTC"
USE_TZ = True
USE_I18N = False

STATIC_URL = "static/"
STATIC_ROOT = env_path("BARTIZAN_STATIC_ROOT", STATE_DIR / "static")
ASSETS_DIR = env_path("BARTIZAN_ASSETS_DIR", STATE_DIR / "assets")
STATICFILES_DIRS = [BASE_DIR / "static", ASSETS_DIR]
STORAGES = {
    "default": {"BACKEND": "django.core.files.storage.FileSystemStorage"},
    "staticfiles": {"BACKEND": "whitenoise.storage.CompressedManifestStaticFilesStorage"},
}

LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {"line": {"format": "%(asctime)s %(levelname)s %(name)s %(message)s"}},
    "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "line"}},
    "root": {"handlers": ["stderr"], "level": env_str("BARTIZAN_LOG_LEVEL", "INFO")},
    # Below its level, django_auth_ldap tells what was typed as a name; console/sign_on/ldap_backend.py says the rest.
    "loggers": {"kmip": {"level": "WARNING"}, "axes": {"level": "WARNING"}, "django_auth_ldap": {"level": "ERROR"}},
}
