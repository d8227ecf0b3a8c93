from .batch_science import read_batch_science as read_batch_science
from .pd1 import pd1_tasks as pd1_tasks
from .pd1 import read_pd1 as read_pd1
