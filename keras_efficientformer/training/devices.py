"""Runs training steps on one device, on all of this machine's, or on several processes'. Room: training.

JAX: `keras.distribution.DataParallel`, over the processes that Keras' KERAS_DISTRIBUTION_* variables name. TensorFlow:
`tf.distribute.MirroredStrategy`, or `MultiWorkerMirroredStrategy` where TF_CONFIG tells of several processes. The model
is not told: the statistics of BatchNorm, and the mean over pixels that have a class, are over the whole batch on both,
as on one device.
"""

import functools
import json
import os
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import keras
import numpy as np

JAX_PROCESSES = "KERAS_DISTRIBUTION_NUM_PROCESSES"


class Devices:
    """One device, on which Keras' own training step runs; and the interface of the others.

    Attributes:
        replicas: devices that share a batch, in all processes.
        processes: how many processes there are.
        process: number of this one; 0 writes the files.
    """

    replicas, processes, process = 1, 1, 0

    def scope(self) -> AbstractContextManager:
        """Where the model is made, compiled, trained and read."""
        return nullcontext()

    def prepare(self, model: keras.Model) -> None:
        """Called once, in the scope, with the model that is to be trained."""

    def share(self, weight: Any) -> Any:
        """How much of the mean over a whole batch this replica's own weighted mean is, in a training step.

        Args:
            weight: the sum of the weights on this replica, a float32 scalar of the backend.

        Returns:
            A float32 scalar, 1 on average of the replicas; 1 on one device, and where Keras' step sees the whole batch.
        """
        return 1.0

    def step(self, model: keras.Model, batch: Sequence[Any]) -> dict[str, float]:
        """One training step on this process' part of a batch, (x, y, sample_weight or None); what Keras reports."""
        # It makes the metrics' variables, once: TensorFlow traces a step that makes variables twice.
        model._symbolic_build(data_batch=batch)
        return model.train_on_batch(*batch, return_dict=True)


class JaxDevices(Devices):
    """All devices that JAX sees, in all processes."""

    def __init__(self) -> None:
        import jax

        if os.environ.get(JAX_PROCESSES, "1") != "1" and not jax.distributed.is_initialized():
            keras.distribution.initialize()
        self._distribution = keras.distribution.DataParallel(auto_shard_dataset=False)
        self.replicas = self._distribution.num_model_replicas
        self.processes, self.process = jax.process_count(), jax.process_index()

    def scope(self) -> AbstractContextManager:
        return self._distribution.scope()


class TensorFlowDevices(Devices):
    """All logical devices that TensorFlow sees, or the processes of TF_CONFIG."""

    def __init__(self) -> None:
        self._strategy = _strategy()
        workers = _workers()
        if len(workers) > 1:
            self.processes = len(workers)
            self.process = self._strategy.cluster_resolver.task_id
        self.replicas = self._strategy.num_replicas_in_sync
        self._compiled_for = None

    def scope(self) -> AbstractContextManager:
        return self._strategy.scope()

    def prepare(self, model: keras.Model) -> None:
        if self.replicas > 1:
            for layer in model._flatten_layers():
                if isinstance(layer, keras.layers.BatchNormalization):
                    layer.synchronized = True

    def share(self, weight: Any) -> Any:
        import tensorflow as tf

        context = tf.distribute.get_replica_context()
        if context is None or self.replicas == 1:  # Keras also calls losses outside of steps, to see their shapes
            return 1.0
        # Keras takes the mean of the replicas' losses, each of which has been divided by its own weights alone.
        return tf.math.divide_no_nan(self.replicas * weight, context.all_reduce("sum", weight))

    def step(self, model: keras.Model, batch: Sequence[Any]) -> dict[str, float]:
        if model.optimizer is not self._compiled_for:
            model._symbolic_build(data_batch=batch)  # it makes the metrics' variables
            self._function, self._compiled_for = self._compile(model), model.optimizer
        model.reset_metrics()
        logs = self._function(keras.tree.map_structure(self._split, batch))
        return {name: float(value) for name, value in logs.items()}

    def _compile(self, model: keras.Model) -> Callable[[Any], dict[str, Any]]:
        """Keras' training step on all replicas, and the mean of what they report.

        Not `train_on_batch`: under MultiWorkerMirroredStrategy it fails on its own metrics, which are scalars
        (Keras 3.15.1, `reduce_per_replica`; tensorflow/tensorflow issue 72388).
        """
        import tensorflow as tf

        @tf.function
        def step(batch: Any) -> dict[str, Any]:
            logs = self._strategy.run(model.train_step, args=(batch,))
            return {name: self._strategy.reduce("MEAN", value, axis=None) for name, value in logs.items()}

        return step

    def _split(self, array: np.ndarray | None) -> Any:
        """This process' part of a batch, divided among its replicas; None for None."""
        if array is None:
            return None
        import tensorflow as tf

        parts = np.split(array, self.replicas // self.processes)

        def part(context: Any) -> Any:
            return tf.convert_to_tensor(parts[context.replica_id_in_sync_group % len(parts)])

        return self._strategy.experimental_distribute_values_from_function(part)


def _workers() -> list[str]:
    """The addresses of the processes that TF_CONFIG names."""
    return json.loads(os.environ.get("TF_CONFIG", "{}")).get("cluster", {}).get("worker", [])


@functools.cache
def _strategy() -> Any:
    """The strategy of this process. A second one would number its collectives as the first did, and TensorFlow aborts
    those whose shapes differ from what the number stood for (2.21: "Shape mismatch in the collective instance").
    """
    import tensorflow as tf

    if len(_workers()) > 1:
        return tf.distribute.MultiWorkerMirroredStrategy()
    kind = "GPU" if tf.config.list_logical_devices("GPU") else "CPU"
    return tf.distribute.MirroredStrategy([device.name for device in tf.config.list_logical_devices(kind)])


def open_devices(devices: str, batch_size: int) -> Devices:
    """The devices to train on. Call it before anything else is computed where there are several processes.

    Args:
        devices: "one" or "all".
        batch_size: of all devices together.

    Raises:
        ValueError: the backend has no data parallelism in Keras, or the batch cannot be divided evenly.
    """
    if devices == "one":
        return Devices()
    engines = {"jax": JaxDevices, "tensorflow": TensorFlowDevices}
    engine = engines.get(keras.backend.backend())
    if engine is None:
        raise ValueError(
            f"Keras trains on several devices with {' and '.join(engines)}, not with {keras.backend.backend()}. "
            "Choose another backend by KERAS_BACKEND, or devices='one'."
        )
    found = engine()
    if batch_size % found.replicas:
        raise ValueError(
            f"A batch of {batch_size} cannot be divided evenly among {found.replicas} devices: make batch_size a "
            f"multiple of {found.replicas}."
        )
    return found
