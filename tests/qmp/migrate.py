#!/usr/bin/env python3
"""Drives a whole migration between two hostvmm processes with QEMU's own QMP client.

    migrate.py HOSTVMM FIRMWARE [OPTION...]     (OPTIONs go to both `hostvmm run`)

The client is the package `qemu.qmp` from PyPI, unchanged: what it accepts is what a program written for QEMU meets. Prints one
line for each step and exits 0; a step that is not as QEMU's protocol says ends it with an assertion.
"""

import asyncio
import json
import os
import subprocess
import sys
import tempfile

from qemu.qmp import ExecuteError, QMPClient

# Any wait: far more than a step takes on a machine that is busy with other tests.
PATIENCE_S = 60


class Side:
    """A `hostvmm run` process and its QMP connection."""

    def __init__(self, name, directory, command):
        self.name = name
        self.socket = os.path.join(directory, f"{name}.qmp")
        self.ledger = os.path.join(directory, f"{name}.json")
        self.client = QMPClient(name)
        self.events = []
        self._seen = asyncio.Condition()
        self.process = subprocess.Popen(
            [*command, "--qmp", f"unix:{self.socket}", "--json", self.ledger],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        )

    async def connect(self):
        """Waits for the socket and negotiates; from then on every event is kept."""
        for _ in range(PATIENCE_S * 20):
            assert self.process.poll() is None, f"{self.name} ended with {self.process.returncode}"
            if os.path.exists(self.socket):
                break
            await asyncio.sleep(0.05)
        await asyncio.wait_for(self.client.connect(self.socket), PATIENCE_S)
        asyncio.get_running_loop().create_task(self._keep_events())

    async def _keep_events(self):
        async for event in self.client.events:
            async with self._seen:
                self.events.append(event)
                self._seen.notify_all()

    async def execute(self, command, **arguments):
        """The command's return value."""
        return await asyncio.wait_for(self.client.execute(command, arguments or None), PATIENCE_S)

    async def refused(self, command, **arguments):
        """The class of the error that the command must give."""
        try:
            await self.execute(command, **arguments)
        except ExecuteError as error:
            assert str(error), f"{command}: an error without a description"
            return error.error_class
        raise AssertionError(f"{command} {arguments} was not refused")

    def statuses(self):
        """What the events MIGRATION said, in order."""
        return [event["data"]["status"] for event in self.events if event["event"] == "MIGRATION"]

    def names(self):
        """The names of all events, in order."""
        return [event["event"] for event in self.events]

    async def wait_for(self, condition, what):
        """Waits until the events fulfil `condition`."""
        async with self._seen:
            try:
                await asyncio.wait_for(self._seen.wait_for(condition), PATIENCE_S)
            except asyncio.TimeoutError:
                raise AssertionError(f"{self.name}: no {what} in {self.names()} {self.statuses()}") from None

    async def end(self):
        """The exit status after `quit`, and the ledger."""
        await self.execute("quit")
        await self.wait_for(lambda: "SHUTDOWN" in self.names(), "SHUTDOWN")
        return await self.wait()

    async def wait(self):
        """The exit status of a process that ends by itself, and its ledger."""
        try:
            await asyncio.wait_for(self.client.disconnect(), PATIENCE_S)
        except EOFError:
            # The process hung up first.
            pass
        status = self.process.wait(PATIENCE_S)
        with open(self.ledger, encoding="utf-8") as ledger:
            return status, json.load(ledger)


def say(text):
    """One line, at once."""
    print(text, flush=True)


async def drive(directory, command, sides):
    """The whole of it; every side that is started is added to `sides`."""

    def start(name, *options):
        side = Side(name, directory, [*command, *options])
        sides.append(side)
        return side

    uri = f"unix:{directory}/migration"
    source = start("source")
    await source.connect()
    version = await source.execute("query-version")
    assert {"major", "minor", "micro"} <= version["qemu"].keys(), version
    commands = {entry["name"] for entry in await source.execute("query-commands")}
    needed = {"migrate", "migrate_cancel", "migrate-incoming", "query-migrate", "stop", "cont", "quit", "calc-dirty-rate"}
    assert needed <= commands, needed - commands
    assert await source.refused("frobnicate") == "CommandNotFound"
    assert await source.refused("migrate", uri="nonsense") == "GenericError"
    status = await source.execute("query-status")
    assert (status["status"], status["running"]) == ("running", True), status
    say("the source runs")

    await source.execute("migrate-set-capabilities", capabilities=[{"capability": "events", "state": True}])
    capabilities = {it["capability"]: it["state"] for it in await source.execute("query-migrate-capabilities")}
    assert capabilities["events"] is True, capabilities
    # Slow enough that it cannot be over before it is cancelled.
    await source.execute("migrate-set-parameters", **{"max-bandwidth": 1 << 20, "downtime-limit": 300})
    parameters = await source.execute("query-migrate-parameters")
    assert (parameters["max-bandwidth"], parameters["downtime-limit"]) == (1 << 20, 300), parameters

    first = start("first", "--incoming", uri)
    await first.connect()
    assert (await first.execute("query-status"))["status"] == "inmigrate"
    await source.execute("migrate", uri=uri)
    await source.wait_for(lambda: "active" in source.statuses(), "MIGRATION active")
    assert await source.refused("migrate", uri=uri) == "GenericError"
    await source.execute("migrate_cancel")
    await source.wait_for(lambda: "cancelled" in source.statuses(), "MIGRATION cancelled")
    assert (await source.execute("query-migrate"))["status"] == "cancelled"
    assert (await source.execute("query-status"))["status"] == "running"
    status, _ = await first.wait()
    assert status == 1, f"a destination without a guest ended with {status}"
    say("cancelled; the source runs on")

    await source.execute("migrate-set-parameters", **{"max-bandwidth": 1 << 34})
    destination = start("destination", "--incoming", "defer")
    await destination.connect()
    await destination.execute("migrate-set-capabilities", capabilities=[{"capability": "events", "state": True}])
    await destination.execute("migrate-incoming", uri=uri)
    source.events.clear()
    await source.execute("migrate", uri=uri)
    await source.wait_for(lambda: "completed" in source.statuses(), "MIGRATION completed")
    await destination.wait_for(lambda: "RESUME" in destination.names(), "RESUME")
    statuses = source.statuses()
    assert statuses == ["setup", "active", "device", "completed"], statuses
    names = source.names()
    assert "STOP" in names and "MIGRATION_PASS" in names, names
    passes = [event["data"]["pass"] for event in source.events if event["event"] == "MIGRATION_PASS"]
    assert passes == list(range(1, len(passes) + 1)), passes
    info = await source.execute("query-migrate")
    assert info["status"] == "completed" and info["total-time"] >= 0 and info["downtime"] >= 0, info
    ram = info["ram"]
    assert ram["remaining"] == 0 and ram["transferred"] > 0 and ram["dirty-sync-count"] >= 1, ram
    assert (await source.execute("query-status"))["status"] == "postmigrate"
    assert (await destination.execute("query-status"))["status"] == "running"
    say(f"migrated in {info['total-time']} ms, downtime {info['downtime']} ms, passes {passes}")

    await destination.execute("stop")
    assert (await destination.execute("query-status"))["status"] == "paused"
    await destination.execute("cont")
    await destination.wait_for(lambda: destination.names().count("RESUME") == 2, "second RESUME")
    assert "STOP" in destination.names()
    say("stopped and continued")

    status, ledger = await source.end()
    assert (status, ledger["verdict"]) == (0, "pass"), (status, ledger)
    status, ledger = await destination.end()
    assert (status, ledger["verdict"]) == (0, "pass"), (status, ledger)
    check = ledger["passes"][-1]
    assert check["digest_guest"] == check["digest_copy"] == check["digest_model"], check
    say("verified at the destination")


def main():
    """Starts everything in a directory of its own and leaves nothing behind."""
    hostvmm, firmware, *options = sys.argv[1:]
    sides = []
    with tempfile.TemporaryDirectory() as directory:
        try:
            asyncio.run(drive(directory, [hostvmm, "run", "--firmware", firmware, *options], sides))
        finally:
            for side in sides:
                if side.process.poll() is None:
                    side.process.kill()
                side.process.wait()


if __name__ == "__main__":
    main()
