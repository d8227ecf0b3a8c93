from .augmentation import augment as augment
from .datasets import ImageDataset as ImageDataset
from .datasets import load_dataset as load_dataset
