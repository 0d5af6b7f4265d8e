"""A stand-in for a GPU, for tests of the benchmarks: its times are known."""

from types import SimpleNamespace

from benchmarks import timers


class FakeCuda:
    """Stands in for torch.cuda: events at fixed distances, and a log of what was done."""

    L2 = 4096
    TAKES = 0.25  # ms from a start to its end

    def __init__(self):
        self.log = []

    def Event(self, enable_timing):
        assert enable_timing
        return FakeEvent(self.log)

    def synchronize(self):
        self.log.append("wait")

    def get_device_properties(self, index):
        return SimpleNamespace(name="Fake GPU", major=9, minor=0, L2_cache_size=self.L2)

    def memory_allocated(self):
        return 1000

    def reset_peak_memory_stats(self):
        self.log.append("reset")

    def max_memory_allocated(self):
        return 1500


class FakeEvent:
    def __init__(self, log):
        self.log = log

    def record(self):
        self.log.append(self)

    def synchronize(self):
        self.log.append("wait")

    def elapsed_time(self, end):
        assert self.log.index(self) < self.log.index(end)
        assert "wait" in self.log[self.log.index(end) :]
        return FakeCuda.TAKES


class FakeDevice(timers.DeviceEvents):
    """Tensors on the CPU, times of a stand-in for torch.cuda."""

    def __init__(self):
        super().__init__("cpu", FakeCuda())

    def flush(self):
        super().flush()
        self.cuda.log.append("flush")
