"""How well pictures keep the person and obey the prompt: CLIP-T, CLIP-I and M_FaceNet, with intervals."""
