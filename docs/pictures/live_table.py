"""Makes live-table.svg, the README's picture: the demo's own system under real traffic, drawn by the table that people see.

Run it from the top folder: python docs/pictures/live_table.py. Nothing leaves this machine; it takes some six seconds.
"""

import re
from contextlib import ExitStack, suppress
from io import StringIO
from pathlib import Path

import anyio
from anyio.abc import Process, SocketStream
from rich._export_format import CONSOLE_SVG_FORMAT
from rich.console import Console

from tuunel.demo import System, running_system
from tuunel.display import LiveTable

WIDTH, HEIGHT = 104, 24
PICTURE = Path(__file__).with_name("live-table.svg")
PLACES = (("127.0.0.1", 8096), ("127.0.0.10", 8123), ("127.0.0.1", 3000))
BEAT = 0.05  # seconds between two pieces of a download


def requests(system: System) -> list[list[str]]:
    """What the people of the picture do: downloads of different speeds through every door, and one that fails."""
    socks, http = f"socks5h://{system.proxy}", f"http://{system.proxy}"
    curl = ["curl", "-s", "-o", "/dev/null", "-x"]
    return [
        [*curl, socks, "http://home.tuunel:8096/9000000"],
        [*curl, http, "http://127.0.0.10.home.tuunel:8123/300000"],
        [*curl, http, "-p", "http://home.tuunel:3000/2000000"],
        [*curl, f"socks4a://{system.proxy}", "http://home.tuunel:3000/40000"],
        [*curl, socks, "http://home.tuunel:9999/"],
    ]


async def serve_film(stream: SocketStream) -> None:
    """Send as many bytes a second as the path says, until the visitor has enough."""
    async with stream:
        with suppress(anyio.EndOfStream, anyio.BrokenResourceError):
            head = await stream.receive()
            pace = int(head.split(b" ")[1][1:])
            await stream.send(b"HTTP/1.1 200 OK\r\nContent-Type: video/mp4\r\n\r\n")
            while True:
                await stream.send(bytes(int(pace * BEAT)))
                await anyio.sleep(BEAT)


async def main() -> None:
    """Take the picture."""
    table = LiveTable("proxy", lambda _: [], console=Console(width=WIDTH, height=HEIGHT, stderr=True), keys=True)
    async with anyio.create_task_group() as servers:
        for host, port in PLACES:
            servers.start_soon((await anyio.create_tcp_listener(local_host=host, local_port=port)).serve, serve_film)
        async with running_system(table) as system:
            await visit(system, table)
        servers.cancel_scope.cancel()


async def visit(system: System, table: LiveTable) -> None:
    """Run the requests, and draw the table while they are under way."""
    with ExitStack() as ending:
        for command in requests(system):
            process = await anyio.open_process(command)
            ending.callback(_end, process)
        for _ in range(3):  # a rate is taken over a second
            await anyio.sleep(1.1)
            table.draw()
        picture = Console(record=True, width=WIDTH, file=StringIO())
        for line in table.lines(WIDTH, HEIGHT):
            picture.print(line)
        # without the font that it would fetch: a picture in a README loads nothing
        frame = re.sub(r"@font-face {{.*?}}\s*", "", CONSOLE_SVG_FORMAT, flags=re.DOTALL)
        PICTURE.write_text(picture.export_svg(title="tuunel proxy", code_format=frame))


def _end(process: Process) -> None:
    if process.returncode is None:
        process.terminate()


if __name__ == "__main__":
    anyio.run(main)
