"""RL post-training for tool-using, multimodal agents, with a learning signal you can trust."""

from burnish.core.errors import BurnishError, ToolError
from burnish.core.message import Message
from burnish.core.task import Limits, Task
from burnish.environments.base import Environment
from burnish.environments.tool import tool

__version__ = "0.1.0"

__all__ = ["BurnishError", "Environment", "Limits", "Message", "Task", "ToolError", "__version__", "tool"]
