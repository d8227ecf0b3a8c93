from .executors import local_executor as local_executor
from .single_run import run_one as run_one
from .store import RunStore as RunStore
