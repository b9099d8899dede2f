"""How well images match the person and the prompt: CLIP-T, CLIP-I and M_FaceNet, with intervals."""
