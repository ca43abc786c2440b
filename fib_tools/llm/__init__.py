"""A large language model as a service: asked, paid for and written down; what it is asked is for others to say."""

from __future__ import annotations
