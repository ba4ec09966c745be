"""The learner (SFT, RL), LoRA, checkpoints."""
