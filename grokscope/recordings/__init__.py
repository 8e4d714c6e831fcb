"""What other programs left behind (vLLM, SGLang, Hugging Face, llama.cpp), as traces. No JAX, nothing is unpickled.

May import trace, and a file format's reader of checkpoints. Read routed_experts.py first.
"""
