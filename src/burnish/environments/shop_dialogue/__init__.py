"""The shop by telephone: its database and tools, and a scripted customer whose wishes arrive turn by turn."""

from burnish.environments.shop_dialogue.customer import Customer
from burnish.environments.shop_dialogue.shop_dialogue import DialogueGrader, ShopDialogue

__all__ = ["Customer", "DialogueGrader", "ShopDialogue"]
