"""The certificate of the gRPC server: that of HTTPS, read anew at the next connection after its
files have changed."""

import logging

import grpc

from server.errors import SettingsError
from server.process.certificates import CertificateFiles

logger = logging.getLogger(__name__)


def credentials(files: CertificateFiles | None) -> grpc.ServerCredentials | None:
    """Return the TLS of the gRPC server; None without certificates. TLS 1.2 is gRPC's least
    version. Raises SettingsError if the files can't be used."""
    if files is None:
        return None
    state = files.state()
    files.check()

    def renewed() -> grpc.ServerCertificateConfiguration | None:
        """Return the certificates if they are others than before, and can be used."""
        nonlocal state
        try:
            now = files.state()
            if now == state:
                return None
            files.check()
            fresh = _read(files)
        except (OSError, SettingsError):
            # It is being replaced, or is refused, which the HTTP server logs.
            return None
        state = now
        logger.info("certificate of gRPC replaced")
        return fresh

    mutual = files.client_ca is not None
    return grpc.dynamic_ssl_server_credentials(_read(files), renewed, mutual)


def _read(files: CertificateFiles) -> grpc.ServerCertificateConfiguration:
    pair = (files.key.read_bytes(), files.certificate.read_bytes())
    ca = files.client_ca.read_bytes() if files.client_ca else None
    return grpc.ssl_server_certificate_configuration([pair], ca)
