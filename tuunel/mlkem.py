"""Whether this machine can do the post-quantum half of every tunnel's handshake."""
# ruff: noqa: PLC0415 - the entry imports this module, and nothing slow with it

from typing import Final

from tuunel.errors import StateError

ML_KEM_ADVICE: Final = (
    "install its official wheel, version 48 or newer:   python -m pip install --upgrade --only-binary :all: 'cryptography>=48'"
)


def require_ml_kem() -> None:
    """Raise StateError, with what to install, unless `cryptography` can do ML-KEM-768."""
    try:
        from cryptography.exceptions import UnsupportedAlgorithm
        from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey
    except ImportError as error:
        raise StateError("the installed 'cryptography' knows no ML-KEM, which every tunnel needs", ML_KEM_ADVICE) from error
    try:
        MLKEM768PrivateKey.generate()
    except UnsupportedAlgorithm as error:
        raise StateError("the installed 'cryptography' is built without ML-KEM, which every tunnel needs", ML_KEM_ADVICE) from error
