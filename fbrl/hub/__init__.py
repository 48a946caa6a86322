"""Agents to and from the Hugging Face Hub: python -m fbrl.hub push|pull."""
