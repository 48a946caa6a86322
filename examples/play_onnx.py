"""Plays MiniGrid with an exported agent, by numpy and onnxruntime alone.

python export_agent.py agents/memory_s13 agent.onnx && python examples/play_onnx.py agent.onnx MiniGrid-MemoryS13-v0
"""

import json
import sys

import gymnasium
import minigrid  # noqa: F401  (registers the tasks)
import numpy as np
import onnxruntime

agent = onnxruntime.InferenceSession(sys.argv[1])
about = json.loads(agent.get_modelmeta().custom_metadata_map["fbrl"])
env = gymnasium.make(sys.argv[2])
solved = 0
for seed in range(20):
    observation, _ = env.reset(seed=seed)
    memory = {name: np.zeros((1, *of["shape"]), of["dtype"]) for name, of in about["memory"].items()}
    start, over = np.ones(1, dtype=bool), False
    while not over:
        seen = {key: np.array([observation[key]], of["dtype"]) for key, of in about["observations"].items()}
        out = dict(zip(about["outputs"], agent.run(None, {**seen, **memory, "episode_start": start}), strict=True))
        memory, start = {name: out[f"next_{name}"] for name in memory}, np.zeros(1, dtype=bool)
        observation, reward, terminated, truncated, _ = env.step(out["action"][0])
        over = terminated or truncated
    solved += float(reward) > 0
print(f"{solved} of 20 episodes solved")
