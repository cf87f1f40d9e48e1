"""A network of namespaces with real kevip daemons on it, for tests, the demo and benchmarks."""
