"""dllama: large language models on the CPUs of one or several ordinary machines."""

__version__ = "0.1.0"
