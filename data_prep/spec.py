"""For now what manifest.py holds."""

from data_prep.manifest import DataSpec, Manifest, load_manifest

__all__ = ["DataSpec", "Manifest", "load_manifest"]
