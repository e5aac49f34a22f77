"""The TURN client: :mod:`turn.client.machine` without I/O, :mod:`turn.client.aio` for asyncio."""
