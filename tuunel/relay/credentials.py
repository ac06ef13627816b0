"""What the relay keeps to prove itself: the root on disk, the leaf in memory only, renewed long before it ends.

Source: docs/spec/relay.md, "Keys"; docs/spec/hop-handshake.md section 6.
"""

from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from tuunel import statefile
from tuunel.relay.certificates import RelayCredentials, RelayRoot, make_leaf, make_root


def load_root(path: Path) -> RelayRoot | None:
    """Read the root (PEM: private key, then certificate); None when there is none. StateError when it is damaged or unsafe."""
    data = statefile.read_private(path)
    if data is None:
        return None
    try:
        key = serialization.load_pem_private_key(data, password=None)
        certificate = x509.load_pem_x509_certificate(data)
        if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP256R1):
            raise ValueError("its key is not on the curve P-256")  # noqa: TRY004 - the file's value is wrong, not our type
        return RelayRoot.from_certificate(key, certificate.public_bytes(serialization.Encoding.DER))
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise statefile.damaged(path, str(error)) from error


def create_root(path: Path, now: int) -> RelayRoot:
    """Make a root and store it, mode 0600; one that another process has stored meanwhile is kept. Every link pins it: back the file up."""
    with statefile.locked(path):
        return load_root(path) or _store_root(path, now)


def _store_root(path: Path, now: int) -> RelayRoot:
    key = ec.generate_private_key(ec.SECP256R1())
    root = make_root(key, now)
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    statefile.write_private(path, pem + root.certificate.public_bytes(serialization.Encoding.PEM))
    return root


def new_leaf(root: RelayRoot, now: int) -> RelayCredentials:
    """Make a leaf with a key of its own. It is never stored: a relay that starts makes another, and no device notices."""
    return make_leaf(root, ec.generate_private_key(ec.SECP256R1()), now)
