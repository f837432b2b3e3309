"""Impacts, a world whose truth is known: visible things strike audible things at exactly known times."""

from syncflow.impacts.clip import ImpactClip, render_clip
from syncflow.impacts.render import render

__all__ = ["ImpactClip", "render", "render_clip"]
