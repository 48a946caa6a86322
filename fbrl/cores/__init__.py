"""The recurrent networks between the encoder and the heads."""
