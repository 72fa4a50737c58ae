"""How an engine runs its decodes: which driver, on which buckets, within which memory."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from .config import EngineConfig, SamplingParams
from .contracts import Canvas, ModelFacts
from .denoisers.lad import LadDenoiser
from .denoisers.lad_bucket import LadBuckets
from .denoisers.latent_bucket import LatentBuckets
from .denoisers.latent_ode import LatentOdeDecoder
from .denoisers.masked import MaskedDenoiser
from .denoisers.masked_bucket import MaskedBuckets
from .denoisers.simplex import SimplexDenoiser
from .denoisers.simplex_bucket import SimplexBuckets
from .errors import CaptureError, ConfigError, DeviceMemoryError
from .model.cache import cache_root
from .model.language_model import LanguageModel
from .model.latent_model import LatentModel
from .model.reward import RewardModel
from .model.simplex_model import SimplexModel
from .ops import OpSet, select_ops
from .runtime.cuda_capture import CudaCapture
from .runtime.decode_loop import LoopLibrary, build_library
from .runtime.drivers import CapturedDecode
from .runtime.graphs import Backend, Graphs, Progress, buffer_bytes
from .runtime.memory import FEW_CANDIDATES, LIBRARY_BYTES, HeadUse, MemoryPlan, plan_memory
from .runtime.runner import EagerDecode
from .runtime.simulated_capture import SimulatedCapture

# A decoding family: its denoiser, built with (model, ops), and its buckets, built with the longest canvas (`runtime.graphs.Family`).
DENOISERS: dict[str, tuple[Any, Any]] = {
    "lad": (LadDenoiser, LadBuckets),
    "masked": (MaskedDenoiser, MaskedBuckets),
    "latent_ode": (lambda model, ops: LatentOdeDecoder(LatentModel(model), ops), LatentBuckets),
    "simplex": (lambda model, ops: SimplexDenoiser(SimplexModel(model), ops), SimplexBuckets),
}

log = logging.getLogger(__name__)


class Decoding:
    """Runs batches of one model, whose decoding family is one of DENOISERS, by the driver the operator chose.

    driver: "eager", "replay" or "loop". graphs: the captured buckets, None for the eager driver. A batch runs on the stream that is
    current, so one engine serves one stream.
    Raises:
        CaptureError: the loop driver was asked for by name and cannot be built.
    """

    def __init__(
        self,
        model: LanguageModel,
        ops: OpSet,
        config: EngineConfig,
        facts: ModelFacts,
        family: str = "lad",
        progress: Progress | None = None,
    ) -> None:
        self._model, self._config, self._facts = model, config, facts
        denoiser, buckets = DENOISERS[family]
        self._denoiser = denoiser(model, ops)
        self._buckets = buckets(facts.max_positions)
        self.driver, backend = choose_driver(config)
        self.graphs: Graphs | None = None
        if backend is not None:
            loop = {"has_loop": self.driver == "loop", "needs_loop": config.driver == "loop"}
            self.graphs = Graphs(self._denoiser, self._buckets, backend, self.plan_bucket, progress=progress, **loop)
            self.graphs.on_move = model.rows_moved
        # A request is laid out on the host and sent in one copy, so what draws its first noise runs there too.
        on_cpu = torch.device(config.device).type == "cpu"
        self._host = self._denoiser if on_cpu else denoiser(model, select_ops("reference", device="cpu"))
        if config.reward_model is not None:
            if family != "simplex":
                raise ConfigError(f"reward_model is given, but this checkpoint decodes as {family}, expected simplex. Leave it out.")
            # The other backends have no backward pass.
            ops = select_ops("reference", device=config.device)
            place = (ops, getattr(torch, config.dtype), config.device, facts.vocab_size)
            self._host.reward = self._denoiser.reward = RewardModel.open(config.reward_model, *place)

    @contextlib.contextmanager
    def run(
        self, canvases: Sequence[Canvas], params: Sequence[SamplingParams], mask_id: int, eos_ids: tuple[int, ...]
    ) -> Iterator[EagerDecode | CapturedDecode]:
        """Lay a batch out and yield its decode, ready for `frames`.

        Raises:
            RequestError, ConfigError: see the denoiser's `begin`.
            DeviceMemoryError: the batch does not fit the device; the sentence says what to reduce.
            CaptureError: the step cannot be captured and a captured driver was asked for by name.
        """
        host = self._lay_out(canvases, params, mask_id, eos_ids) if self.graphs is not None else None
        with contextlib.ExitStack() as stack:
            try:
                yield stack.enter_context(self._decode(host, canvases, params, mask_id, eos_ids))
            except torch.OutOfMemoryError as error:
                plan = self.plan(canvases, params, mask_id, eos_ids)
                raise DeviceMemoryError(plan.refusal()) from error

    def check(self, canvas: Canvas, params: SamplingParams, mask_id: int) -> None:
        """Raise what `run` would for this request, RequestError or ConfigError, without laying it out; any thread may ask."""
        self._denoiser.check(canvas, params, mask_id)

    def warm_up(
        self,
        canvases: Sequence[Canvas],
        params: Sequence[SamplingParams],
        mask_id: int,
        eos_ids: tuple[int, ...],
        progress: Progress | None = None,
    ) -> None:
        """Capture the bucket of such a batch, and the smaller ones it shrinks to; the eager driver has nothing to prepare.

        Raises:
            DeviceMemoryError, CaptureError: as `run`.
        """
        if self.graphs is None:
            return
        before, self.graphs.progress = self.graphs.progress, progress
        try:
            self.graphs.release(self.graphs.lease(self._lay_out(canvases, params, mask_id, eos_ids)))
        finally:
            self.graphs.progress = before

    def forget(self) -> None:
        """Drop every captured bucket: something that is baked into them changed."""
        if self.graphs is not None:
            self.graphs.clear()

    def plan_state(self, state: Any) -> MemoryPlan:
        """Plan the memory of a batch that was laid out on the host."""
        bucket = self._buckets.bucket_of(state)
        return self.plan_bucket(bucket, buffer_bytes(self._buckets, self._buckets.blank(bucket, state)))

    def plan(self, canvases: Sequence[Canvas], params: Sequence[SamplingParams], mask_id: int, eos_ids: tuple[int, ...]) -> MemoryPlan:
        """Plan the memory of a batch before anything of it is allocated."""
        return self.plan_state(self._lay_out(canvases, params, mask_id, eos_ids))

    def plan_bucket(self, bucket: Any, buffers: int) -> MemoryPlan:
        """Plan the memory of a bucket whose buffers take so many bytes, what its family keeps beside them included."""
        transformer, item_bytes = self._model.transformer, getattr(torch, self._config.dtype).itemsize
        beside = getattr(self._buckets, "beside", lambda *_: 0)
        *layers, head = transformer.projections()
        return plan_memory(
            self._facts,
            rows=bucket.rows,
            positions=bucket.positions,
            answers=bucket.answers,
            item_bytes=item_bytes,
            weights=weight_bytes(transformer),
            buffers=buffers + beside(bucket, self._facts, item_bytes),
            head=HeadUse(
                is_guided=bucket.is_guided,
                has_certainty="certainty" in getattr(bucket, "used", ()),
                is_soft=isinstance(self._buckets, SimplexBuckets),
                needs_rows=bucket.samples_all or not 0 < bucket.max_top_k <= FEW_CANDIDATES,
                is_plain=head.is_plain and self._config.precision == "auto" and not getattr(bucket, "is_penalised", False),
            ),
            precision=self._config.precision,
            has_wide_paths=any(one.low_rank and one.weight.shape[0] >= self._facts.mlp_width for one in layers),
            library=library_bytes(self._config),
        )

    def _lay_out(self, canvases: Sequence[Canvas], params: Sequence[SamplingParams], mask_id: int, eos_ids: tuple[int, ...]) -> Any:
        return self._host.begin(canvases, params, mask_id=mask_id, eos_ids=eos_ids, device="cpu")

    def _decode(
        self,
        host: Any,
        canvases: Sequence[Canvas],
        params: Sequence[SamplingParams],
        mask_id: int,
        eos_ids: tuple[int, ...],
    ) -> EagerDecode | CapturedDecode:
        # A family may leave some requests to the eager loop.
        can_capture = getattr(self._buckets, "can_capture", lambda _: True)
        if host is not None and self.graphs is not None and can_capture(host):
            try:
                # Captured here, not when it is entered: stepping down is decided before anything runs.
                self.graphs.release(self.graphs.lease(host))
                self.driver = without_refused_loop(self.driver, self.graphs)
                return CapturedDecode(self.graphs, host, wants_loop=self.driver == "loop")
            except CaptureError as error:
                if self._config.driver != "auto":
                    raise
                log.warning("decodes run eagerly: %s", error)
                self.driver, self.graphs = "eager", None
        state = self._denoiser.begin(canvases, params, mask_id=mask_id, eos_ids=eos_ids, device=self._config.device)
        return EagerDecode(self._denoiser, state)


def choose_driver(config: EngineConfig) -> tuple[str, Backend | None]:
    """Return the driver and where it captures; "auto" steps down from the loop to replays and says why."""
    device = torch.device(config.device)
    if device.type != "cuda":
        driver = "eager" if config.driver == "auto" else config.driver
        return driver, SimulatedCapture() if driver != "eager" else None
    if config.driver == "eager":
        return "eager", None
    library: LoopLibrary | None = None
    if config.driver in ("auto", "loop"):
        try:
            library = build_library(cache_root() / "extensions", torch.cuda.get_device_capability(device), os.environ.get("LAD_CUDA_ARCHS"))
        except CaptureError as error:
            if config.driver == "loop":
                raise
            log.warning("decodes are replayed step by step: %s", error)
    return ("loop" if library is not None else "replay"), CudaCapture(device, library)


def without_refused_loop(driver: str, graphs: Graphs) -> str:
    """Return the driver for buckets that are captured: replays where "auto" chose the loop and it could not be built."""
    if driver != "loop" or not graphs.loop_refused:
        return driver
    log.warning("decodes are replayed step by step: %s", graphs.loop_refused)
    return "replay"


def library_bytes(config: EngineConfig) -> int:
    """Return what GEMM libraries take of the device for themselves."""
    return LIBRARY_BYTES if torch.device(config.device).type == "cuda" else 0


def weight_bytes(transformer: Any) -> int:
    """Return what a decoder holds: weights of any width with their scales, tables, and the stacks of resident adapters."""
    held = [*transformer.parameters(), *transformer.buffers()]
    stacked = transformer.adapter_rows.nbytes if transformer.adapter_rows is not None else 0
    return sum({tensor.data_ptr(): tensor.nbytes for tensor in held}.values()) + stacked
