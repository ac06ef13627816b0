"""tuunel: reach any port of a machine behind NAT through a relay that cannot read what it carries."""

__version__ = "0.1.0"
