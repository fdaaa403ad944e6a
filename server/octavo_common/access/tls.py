"""TLS: a context from the files that were given, and from those that take their place while the server runs."""

import hashlib
import ssl
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from octavo_common.access.config import AccessConfig
from octavo_common.errors import ConfigError

_MAX_FILE_BYTES: Final = 4 * 2**20


class Tls:
    """The certificate that is shown to new connections, at both ports."""

    def __init__(self, config: AccessConfig, certificate: Path) -> None:
        """Read it.

        Raises:
            ConfigError: a file is missing or no PEM, or the key is another certificate's.
        """
        self._certificate, self._key, self._authorities = certificate, config.ssl_keyfile, config.ssl_ca_certs
        flags = {"--ssl-certfile": certificate, "--ssl-keyfile": self._key, "--ssl-ca-certs": self._authorities}
        self._given = [(flag, path) for flag, path in flags.items() if path is not None]
        required = ssl.CERT_REQUIRED if config.ssl_cert_reqs is None else ssl.VerifyMode(config.ssl_cert_reqs)
        self._verify = required if config.ssl_ca_certs is not None else ssl.CERT_NONE
        self._digest = self._read()
        self.main = _Switched(self._make(self._verify))
        self.admin = _Switched(self._make(ssl.CERT_NONE))  # probes and scrapers have no certificate of their own

    @property
    def files(self) -> Sequence[Path]:
        """What may change."""
        return [path for _, path in self._given]

    def reload(self) -> str | None:
        """Read the files again, and say so if they are others. Where that fails, all stays as it is.

        Raises:
            ConfigError: as at the beginning.
        """
        digest = self._read()
        if digest == self._digest:
            return None
        contexts = self._make(self._verify), self._make(ssl.CERT_NONE)
        self.main.current, self.admin.current = contexts
        self._digest = digest
        return f"the certificate {self._certificate} was read again, for new connections"

    def _read(self) -> bytes:
        """A digest of what the files hold."""
        digest = hashlib.blake2b(digest_size=32)
        for flag, path in self._given:
            try:
                with path.open("rb") as file:
                    data = file.read(_MAX_FILE_BYTES + 1)
            except OSError as error:
                raise ConfigError(f"{flag} {path}: {error.strerror or error}") from error
            if len(data) > _MAX_FILE_BYTES:
                raise ConfigError(f"{flag} {path}: it is larger than {_MAX_FILE_BYTES} bytes")
            digest.update(hashlib.blake2b(data).digest())
        return digest.digest()

    def _make(self, verify: ssl.VerifyMode) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.set_alpn_protocols(["http/1.1"])
        _load_certificate(context, self._certificate, self._key)
        if self._authorities is not None:
            try:
                context.load_verify_locations(self._authorities)
            except OSError as error:  # which ssl.SSLError is
                raise ConfigError(f"--ssl-ca-certs {self._authorities}: there is no certificate in it (PEM)") from error
        context.verify_mode = verify
        return context


class _Switched(ssl.SSLContext):
    """A context that stands for another one, which may change: a connection asks it once, when it begins."""

    current: ssl.SSLContext

    def __new__(cls, current: ssl.SSLContext) -> "_Switched":
        return super().__new__(cls, ssl.PROTOCOL_TLS_SERVER)

    def __init__(self, current: ssl.SSLContext) -> None:
        self.current = current

    def wrap_bio(self, *args: Any, **kwargs: Any) -> ssl.SSLObject:
        """As the other one does."""
        return self.current.wrap_bio(*args, **kwargs)


def _load_certificate(context: ssl.SSLContext, certificate: Path, key: Path | None) -> None:
    encrypted = False

    def password() -> str:  # without it, OpenSSL would ask at the terminal
        nonlocal encrypted
        encrypted = True
        return ""

    flag = f"--ssl-keyfile {key}" if key is not None else f"--ssl-certfile {certificate} (without --ssl-keyfile)"
    try:
        context.load_cert_chain(certificate, key, password)
    except OSError as error:
        if encrypted:
            raise ConfigError(f"{flag}: the key is encrypted; give one without a password") from error
        if isinstance(error, ssl.SSLError) and error.reason == "KEY_VALUES_MISMATCH":
            raise ConfigError(f"{flag}: the key does not belong to the certificate {certificate}") from error
        raise ConfigError(
            f"{flag}: OpenSSL does not take it together with the certificate {certificate}: both must be PEM "
            f"({getattr(error, 'reason', None) or error.strerror or error})"
        ) from error
