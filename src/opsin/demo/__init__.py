"""Demonstrations on built-in data, one task per file: the main job from data to export, in a minute."""

from __future__ import annotations

from opsin.registry import Registry

demos = Registry("demo", "opsin.demo")
