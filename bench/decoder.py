"""A random model ready to decode with our drivers: what `step.py` and `decode.py` time."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from tempfile import gettempdir

import numpy as np
import torch

from bench.random_model import MASK_ID, random_model
from lad_engine.config import SamplingParams
from lad_engine.contracts import Canvas, ModelFacts
from lad_engine.denoisers.lad import LadDenoiser
from lad_engine.denoisers.lad_bucket import LadBuckets
from lad_engine.denoisers.lad_state import LadState
from lad_engine.errors import CaptureError
from lad_engine.model.language_model import LanguageModel
from lad_engine.model.precision import check_precision, quantise
from lad_engine.ops import OpSet, rows_stand_alone, select_ops
from lad_engine.runtime.cuda_capture import CudaCapture
from lad_engine.runtime.decode_loop import LoopLibrary, build_library
from lad_engine.runtime.drivers import CapturedDecode
from lad_engine.runtime.graphs import Captured, Graphs
from lad_engine.runtime.runner import EagerDecode
from lad_engine.runtime.simulated_capture import SimulatedCapture

DRIVERS = ("eager", "replay", "loop")


class Decoder:
    """One model with its ops, its denoiser and its captured steps.

    Args:
        ops, precision: as `--ops` and `--precision` take them. batch_invariant: a row's numbers do not follow its batch, at a cost.
        watched: what the chosen ops are wrapped in, such as a watch on each of them.
    """

    def __init__(
        self,
        facts: ModelFacts,
        dtype: torch.dtype,
        device: str,
        ops: str = "auto",
        precision: str = "auto",
        batch_invariant: bool = False,
        watched: Callable[[OpSet], OpSet] | None = None,
    ) -> None:
        self.facts, self.dtype, self.device = facts, dtype, device
        self.precision = str(dtype).removeprefix("torch.") if precision == "auto" else precision
        chosen = select_ops(ops, device, batch_invariant=batch_invariant)
        self.ops = chosen if watched is None else watched(chosen)
        check_precision(precision, torch.device(device), self.ops.chosen, batch_invariant)
        self.transformer = random_model(facts, self.ops, dtype, device)
        quantise(self.transformer, precision)
        self.model = LanguageModel(self.transformer, batch_invariant, rows_stand_alone(self.ops, device))
        self.denoiser = LadDenoiser(self.model, self.ops)
        # Requests for a captured step are laid out on the host, by the host's ops.
        self._host_denoiser = LadDenoiser(self.model, select_ops("auto", "cpu"))
        self._library_refused = ""
        self._graphs: Graphs | None = None

    def params(self, steps: int, answer: int, **settings) -> SamplingParams:
        """Return the decode every driver runs: top 3, uniform re-masking, no early stop, since random weights never settle."""
        return SamplingParams(**{"max_new_tokens": answer, "steps": steps, "top_k": 3, "early_stop": False, **settings})

    def canvases(self, batch: int, canvas: int, answer: int) -> list[Canvas]:
        """Return requests of random prompts and open answers."""
        numbers = np.random.default_rng(0)
        start = canvas - answer
        is_open = np.arange(canvas) >= start
        ids = (np.where(is_open, MASK_ID, numbers.integers(8, self.facts.vocab_size, canvas)) for _ in range(batch))
        return [Canvas(one.astype(np.int64), is_open, start) for one in ids]

    def begin(self, canvases: list[Canvas], params: SamplingParams, is_captured: bool) -> LadState:
        """Lay a batch out: on the host for a captured step, on the device for an eager one."""
        denoiser, device = (self._host_denoiser, "cpu") if is_captured else (self.denoiser, self.device)
        each = [params.replace(seed=seed) for seed in range(len(canvases))]
        return denoiser.begin(canvases, each, mask_id=MASK_ID, eos_ids=self.facts.eos_ids, device=device)

    def decode(self, state: LadState, driver: str) -> CapturedDecode | EagerDecode:
        """Return the decode of a batch by one driver, to be used as a context manager."""
        return EagerDecode(self.denoiser, state) if driver == "eager" else CapturedDecode(self.graphs, state, driver == "loop")

    def load(self, captured: Captured, state: LadState) -> None:
        """Copy a batch into a captured bucket, as a request starts."""
        captured.arena.load(lambda buffers: self.graphs.family.fill(buffers, state))

    @property
    def graphs(self) -> Graphs:
        """The captured steps: CUDA graphs, with the loop node where it can be built, or their stand-in on a CPU."""
        if self._graphs is None:
            family = LadBuckets(self.facts.max_positions)
            if torch.device(self.device).type == "cuda":
                library = self._loop_library()
                loop = {"has_loop": library is not None, "needs_loop": False}
                self._graphs = Graphs(self.denoiser, family, CudaCapture(self.device, library), **loop)
            else:
                self._graphs = Graphs(self.denoiser, family, SimulatedCapture(), has_loop=True)
        return self._graphs

    @property
    def loop_refused(self) -> str:
        """Why there is no single-graph loop; empty where there is one, or nobody has asked yet."""
        return self._library_refused or (self._graphs.loop_refused if self._graphs is not None else "")

    def _loop_library(self) -> LoopLibrary | None:
        try:
            return build_library(Path(gettempdir()) / "lad-engine-bench", torch.cuda.get_device_capability(self.device))
        except CaptureError as error:
            self._library_refused = str(error)
            return None
