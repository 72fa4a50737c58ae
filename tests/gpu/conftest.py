import bench_on_path  # noqa: F401 - its import is its effect
