"""The processes of a training: who they are, how they meet, and that all go on."""
