"""The only package that talks to the network: models of the Hugging Face hub and of ModelScope.

reference   what a user may write for a model
names       which names, hashes and commits of an endpoint may become part of a path
catalogue   the files of a model at one commit: hugging_face, modelscope
needed      which of them are worth fetching
client      HTTP with resumable bodies: redirects, tokens, retries
download    many files and ranges at once, hashed while they arrive; transfer, bodies: one of each
stores      where files lie: the hub's own cache, or a plain folder
pull        all of it together
"""

from .model_name import looks_like_hub_name as looks_like_hub_name
from .pull import config_folder as config_folder
from .pull import snapshot as snapshot
