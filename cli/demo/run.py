"""Runs a demonstration: service and fleet side by side, followed from outside to the end."""

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import AsyncIterator, Coroutine, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, TypeVar

from cli.contradictions import OptionsError
from cli.demo.evidence import DEVICE_LOGS, SERVER_LOGS, Evidence
from cli.demo.headline import headline
from cli.demo.leader import leader_of
from cli.demo.observer import TaskObserver
from cli.demo.ports import ReservedPorts
from cli.demo.report import DemoReport, RoundReport
from cli.demo.settings import (
    MODEL_FILE,
    NUM_COORDINATORS,
    TASK,
    DemoAddresses,
    DemoSettings,
    SharedSettings,
    min_members,
    server_toml,
)
from cli.demo.tally import model_bytes_down, tally
from cli.demo.view import DemoView
from cli.demo.watch import ProcessWatch, Waiting, ended
from cli.exit_codes import CliError, ExitCode
from cli.guardian import Guardian
from cli.holder.committee_files import CommitteePlan
from cli.holder.local_committee import LocalCommittee
from cli.serve.service import (
    COORDINATOR,
    COORDINATOR_PROGRAM,
    HOLDER_PROGRAM,
    Service,
    server_template,
)
from cli.serve.signals import ENDING
from monitoring.process_memory import PeakMemory
from server.admin.answers import TaskStatus
from server.config import ServerConfig, load_config
from server.processes.child_process import ProcessSpec
from server.processes.supervisor import ProcessEvent, StartupError, Supervisor
from server.processes.template import Template
from simulation.data import datasets
from simulation.errors import FleetError
from simulation.fleet.device_fleet import device_fleet
from simulation.fleet.device_spec import DeviceSpec, Hold, device_id
from simulation.fleet.fleet import Fleet, FleetConfig
from simulation.models import evaluate, initial_weights
from updates.codec import dense_payload_bytes
from updates.vectors import encode_model

_POLL_S: Final = 0.2
_ANSWER_S: Final = 1.0
_KILLED: Final = "killed"
_FLEET_END_S: Final = 15.0
_MAX_ABANDONED: Final = 3
_STOP_GRACE_S: Final = 5.0
_MEGABYTE: Final = 1_000_000

AnswerT = TypeVar("AnswerT")


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoPlace:
    """Where a demonstration writes.

    Attributes:
        folder: an empty folder for everything.
        guardian: removes what is left, when every process is gone.
        is_kept: whether the folder stays.
    """

    folder: Path
    guardian: Guardian
    is_kept: bool = False


class Demo:
    """One demonstration in one folder; run it once, in the main thread.

    Args:
        settings: what to run.
        place: where everything goes that the processes write.
        view: told what happens.
        data_dir: where the data set lies, as in `datasets.load`.
    """

    def __init__(
        self,
        settings: DemoSettings,
        place: DemoPlace,
        view: DemoView,
        *,
        data_dir: Path | None = None,
    ) -> None:
        self._settings = settings
        self._place = place
        self._folder = place.folder
        self._evidence = Evidence(place.folder)
        self._view = view
        self._data_dir = data_dir
        self._started_at = time.monotonic()
        self._rounds: list[RoundReport] = []
        self._killed = 0
        self._committee: LocalCommittee | None = None
        self._phase = ""

    async def run(self) -> DemoReport:
        """Train to the last round; no process is left when it returns or raises.

        Raises:
            CliError: if the service or the devices fail, or at a signal that ends a command.
            OptionsError: if a coordinator would refuse what was asked for; nothing has started.
            SimulationError: if the data set cannot be loaded.
        """
        try:
            report = await self._run()
        except CliError as error:
            if isinstance(error, OptionsError) or error.exit_code is ExitCode.INTERRUPTED:
                raise
            msg = f"{error}; logs are in {self._logs()}"
            raise CliError(msg, exit_code=error.exit_code) from error
        if report.problem:
            report = replace(report, problem=f"{report.problem}; logs are in {self._logs()}")
        return report

    def _logs(self) -> Path:
        """Tell where logs stay."""
        return self._folder / SERVER_LOGS if self._place.is_kept else self._evidence.keep()

    async def _run(self) -> DemoReport:
        scenario = self._settings.scenario
        data = datasets.load(scenario.dataset, self._data_dir)
        weights = initial_weights(scenario.dataset, scenario.seed)
        for name in (DEVICE_LOGS, SERVER_LOGS):
            (self._folder / name).mkdir()
        (self._folder / MODEL_FILE).write_bytes(encode_model(weights))
        shared = self._settings.shared
        with ReservedPorts(shared.holders if shared else 0) as ports:
            # Given back at once: a holder shares its port with nobody.
            holders = ports.addresses
        with ReservedPorts(3) as ports, ExitStack() as stack:
            grpc, http, metrics = ports.addresses
            addresses = DemoAddresses(grpc=grpc, http=http, metrics=metrics)
            config_path = self._folder / "server.toml"
            programs: dict[str, tuple[str, ...]] = {
                COORDINATOR_PROGRAM: ("--config", str(config_path))
            }
            if shared is not None:
                programs[HOLDER_PROGRAM] = ()
            template = stack.enter_context(
                server_template(programs, log_path=self._folder / SERVER_LOGS / "template.log")
            )
            if shared is not None:
                self._committee = stack.enter_context(
                    self._local_committee(shared, holders, template)
                )
            toml = server_toml(
                self._settings, addresses, self._folder, committee=self._committee_path
            )
            config_path.write_text(toml)
            config = self._config(config_path)
            self._view.say(headline(self._settings))
            with Service(
                config_path,
                config,
                workers=NUM_COORDINATORS,
                template=template,
                log_dir=self._folder / SERVER_LOGS,
                metrics_dir=self._folder / "metrics",
                log_format="json",
            ) as service:
                if service.socket_dir is not None:
                    self._guard_socket(service.socket_dir)
                holding = self._committee.specs if self._committee is not None else ()
                specs = (*template.specs, *holding, *service.specs)
                report = await self._serve(service, specs, TaskObserver(addresses, data), grpc)
        return replace(
            report,
            initial_accuracy=evaluate(weights, data.x_test, data.y_test).accuracy,
        )

    def _config(self, path: Path) -> ServerConfig:
        if self._settings.is_usual:
            return load_config(path, {})
        # Takes a second, in which nobody can have gone wrong who asks for nothing special.
        from cli.demo.trial import tried_config  # noqa: PLC0415

        return tried_config(path)

    @property
    def _hold(self) -> Hold | None:
        """What keeps the round open in which a coordinator is killed, until it is."""
        due = self._settings.kill_coordinator_at_round
        return None if due is None else Hold(round=due, until=self._folder / _KILLED)

    @property
    def _committee_path(self) -> Path | None:
        return self._committee.committee_path if self._committee is not None else None

    def _local_committee(
        self, shared: SharedSettings, addresses: Sequence[str], template: Template
    ) -> LocalCommittee:
        least = min_members(self._settings)
        return LocalCommittee(
            CommitteePlan(
                threshold=shared.threshold,
                addresses=addresses,
                min_members=least,
                min_group_size=least,
            ),
            self._folder / "committee",
            [device_id(index) for index in range(self._settings.scenario.num_devices)],
            template=template,
            log_dir=self._folder / SERVER_LOGS,
        )

    def _guard_socket(self, folder: Path) -> None:
        if not folder.is_relative_to(self._folder):
            self._place.guardian.guard(folder)

    async def _serve(
        self,
        service: Service,
        specs: Sequence[ProcessSpec],
        observer: TaskObserver,
        server: str,
    ) -> DemoReport:
        """Run the processes for as long as the training takes."""
        specs = [
            replace(spec, pass_fds=(*spec.pass_fds, self._place.guardian.fd)) for spec in specs
        ]
        watch = ProcessWatch(specs, self._view.say)
        memory = PeakMemory(watch.pids)

        def observe(event: ProcessEvent) -> None:
            service.observe(event)
            watch.observe(event)

        supervisor = Supervisor(
            specs, grace_s=_STOP_GRACE_S, on_event=observe, on_ready=watch.all_ready
        )
        serving = asyncio.create_task(supervisor.run())
        working = asyncio.create_task(self._train(service, watch, observer, server))
        watching = asyncio.create_task(memory.watch())
        interrupted = asyncio.create_task(_interruption())
        dying = asyncio.create_task(watch.fault())
        tasks = (serving, working, interrupted, dying)
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            if working.done():
                return replace(working.result(), peak_server_pss_mb=memory.peak_bytes / _MEGABYTE)
            for failing in (serving, dying):
                if failing.done():
                    failing.result()
            msg = "interrupted"
            raise CliError(msg, exit_code=ExitCode.INTERRUPTED)
        except StartupError as error:
            raise watch.never_ready(error) from error
        finally:
            # The devices first: coordinators wait a while for the calls that they hold.
            watch.stopping()
            for task in (working, watching, interrupted, dying):
                task.cancel()
            await asyncio.gather(working, watching, interrupted, dying, return_exceptions=True)
            supervisor.stop()
            await asyncio.gather(serving, return_exceptions=True)

    async def _train(
        self,
        service: Service,
        watch: ProcessWatch,
        observer: TaskObserver,
        server: str,
    ) -> DemoReport:
        async with observer, self._fleet(server) as fleet:
            problem = await self._follow(observer, fleet, service, watch)
            # The devices learn by themselves that the task is finished.
            if not problem:
                await _ended(fleet)
            await asyncio.to_thread(fleet.stop)
            return await self._report(observer, problem)

    @contextlib.asynccontextmanager
    async def _fleet(self, server: str) -> AsyncIterator[Fleet[DeviceSpec]]:
        scenario = self._settings.scenario
        specs = [
            DeviceSpec(
                scenario=scenario,
                index=index,
                servers=(server,),
                task=TASK,
                log_dir=self._folder / DEVICE_LOGS,
                data_dir=self._data_dir,
                committee=self._committee_path,
                identity_dir=self._committee.identities_dir if self._committee else None,
                hold=self._hold if index == 0 else None,
            )
            for index in range(scenario.num_devices)
        ]
        config = FleetConfig(
            grace_s=_STOP_GRACE_S,
            log_path=self._evidence.devices_log,
            ends_together=True,
            pass_fds=(self._place.guardian.fd,),
            # Devices that find nobody would look again only after a while.
            waits=True,
        )
        fleet = device_fleet(specs, config)
        fleet.start()
        try:
            yield fleet
        except BaseException:
            # The fleet may not even have started; what went wrong before matters more.
            with contextlib.suppress(FleetError):
                await asyncio.to_thread(fleet.stop)
            raise

    async def _follow(
        self,
        observer: TaskObserver,
        fleet: Fleet[DeviceSpec],
        service: Service,
        watch: ProcessWatch,
    ) -> str:
        """Report rounds as they finish; return why the task will not be finished, or ""."""

        def what() -> str:
            starting = ", ".join(watch.starting)
            return f"{starting} not ready" if starting else self._phase or "devices start"

        patience = Waiting(self._view.say, what)
        await self._while_running(watch.ready(), fleet, patience)
        fleet.release()
        while True:
            is_running = fleet.is_running
            status = await self._while_running(observer.status(), fleet, patience)
            after = self._rounds[-1].round if self._rounds else 0
            finished = await self._while_running(observer.finished_rounds(after), fleet, patience)
            for one in finished:
                self._rounds.append(one)
                self._view.finished(one)
                patience.progressed()
            if status.published_rounds >= status.num_rounds:
                return ""
            if status.budget_exhausted:
                return "the privacy budget allows no further round"
            latest = self._rounds[-_MAX_ABANDONED:]
            if len(latest) == _MAX_ABANDONED and all(r.decision != "published" for r in latest):
                return f"{_MAX_ABANDONED} rounds in a row were abandoned: {latest[-1].reason}"
            if not is_running:
                raise await self._devices_ended(fleet)
            self._phase = _phase_text(status)
            self._view.phase(self._phase)
            self._kill_when_due(status, service, watch)
            patience.tick()
            await asyncio.sleep(_POLL_S)

    async def _while_running(
        self, asking: Coroutine[None, None, AnswerT], fleet: Fleet[DeviceSpec], patience: Waiting
    ) -> AnswerT:
        """Wait for an answer as long as the devices live, however long it takes."""
        task = asyncio.create_task(asking)
        try:
            while not (await asyncio.wait([task], timeout=_ANSWER_S))[0]:
                if not fleet.is_running:
                    raise await self._devices_ended(fleet)
                patience.tick()
            return task.result()
        finally:
            task.cancel()

    async def _devices_ended(self, fleet: Fleet[DeviceSpec]) -> CliError:
        """Tell how the devices ended, by the first that failed."""
        try:
            codes = (await asyncio.to_thread(fleet.wait)).exit_codes
        except FleetError as error:
            # It died, or told why it could not start them.
            return CliError(f"{error}: {self._evidence.last_words()}")
        # The others were told to end.
        failed = [slot for slot, code in enumerate(codes) if code not in {0, -signal.SIGTERM}]
        if not failed:
            return CliError(f"the devices ended: {self._evidence.last_words()}")
        device = device_id(failed[0])
        return CliError(f"{device} {ended(codes[failed[0]])}: {self._evidence.last_words(device)}")

    def _kill_when_due(self, status: TaskStatus, service: Service, watch: ProcessWatch) -> None:
        due = self._settings.kill_coordinator_at_round
        number = status.round_number or 0
        if due is None or self._killed or number < due or status.phase != "collecting":
            return
        coordinators = [name for name in service.pids if name.startswith(COORDINATOR)]
        logs = [(name, service.log_path(name)) for name in coordinators]
        leader = leader_of((name, path) for name, path in logs if path is not None)
        if leader is not None:
            pid = service.pids[leader]
            watch.expect(pid)
            os.kill(pid, signal.SIGKILL)
            self._killed += 1
            (self._folder / _KILLED).touch()
            self._view.say(f"killed {leader} (pid {pid}), which was leading round {number}")

    async def _report(self, observer: TaskObserver, problem: str) -> DemoReport:
        contributors = await self._evidence.contributors([one.round for one in self._rounds])
        events = self._evidence.device_events()
        counted = tally(events, contributors, self._evidence.pseudonym)
        models = await observer.models()
        sizes = {model.version: model.size_bytes for model in models}
        down = model_bytes_down(events, sizes)
        openings = self._evidence.openings() if self._settings.shared else {}
        spent = None if self._settings.privacy is None else await observer.privacy()
        return DemoReport(
            settings=self._settings,
            rounds=[
                replace(
                    one,
                    bytes_down=down.get(one.round, 0),
                    openings=tuple(openings.get(one.round, ())),
                )
                for one in self._rounds
            ],
            wall_s=time.monotonic() - self._started_at,
            acknowledged_updates=counted.acknowledged,
            lost_updates=counted.lost,
            duplicate_updates=counted.duplicate,
            killed=self._killed,
            dense_update_bytes=dense_payload_bytes(models[0].dim),
            epsilon_spent=None if spent is None else spent.epsilon_spent,
            problem=problem,
        )


async def _interruption() -> None:
    """Return at a signal that ends a command; the supervisor, just started, has taken two."""
    interrupted = asyncio.Event()
    for number in (signal.SIGINT, *ENDING):
        if signal.getsignal(number) is not signal.SIG_IGN:
            asyncio.get_running_loop().add_signal_handler(number, interrupted.set)
    await interrupted.wait()


async def _ended(fleet: Fleet[DeviceSpec]) -> None:
    with contextlib.suppress(TimeoutError):
        await asyncio.to_thread(fleet.wait, _FLEET_END_S)


def _phase_text(status: TaskStatus) -> str:
    number, phase = status.round_number or 1, status.phase or "selecting"
    if phase == "collecting":
        return f"round {number}: {status.accepted} of {status.cohort_size} updates"
    if phase == "selecting":
        return f"round {number}: {status.waiting} devices wait"
    return f"round {number}: {phase}"
