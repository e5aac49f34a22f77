"""Users in a database: SQLite for one server, Redis for a fleet of them.

A database is named by a URL: ``sqlite:///var/lib/turnd/users.db`` or
``redis://:password@host:6379/0`` (``rediss://`` for TLS, ``unix:///run/redis.sock``).
:func:`open_backend` is what a running server asks, :func:`open_table` what ``turnd users`` writes.
"""

from __future__ import annotations

from turn.users.base import UserBackend, UserTable, Where, where

__all__ = ["open_backend", "open_table"]


def open_backend(url: str, realm: str) -> UserBackend:
    """Return the database of this URL, for reading; nothing is connected to yet.

    Raises :class:`stun.errors.UsageError` for a URL that names no database natkit can use.
    """
    if where(url) is Where.SQLITE:
        from turn.users.sqlite import SqliteUsers, path_of

        return SqliteUsers(path_of(url), realm)
    from turn.users.redis import RedisUsers

    return RedisUsers(url, realm)


def open_table(url: str, realm: str) -> UserTable:
    """Return the database of this URL, to add and remove users; made if it is a missing file.

    Raises :class:`stun.errors.UsageError` as :func:`open_backend` does, and
    :class:`turn.users.base.BackendError` when it cannot be opened.
    """
    if where(url) is Where.SQLITE:
        from turn.users.sqlite import SqliteTable, path_of

        return SqliteTable(path_of(url), realm)
    from turn.users.redis import RedisTable

    return RedisTable(url, realm)
