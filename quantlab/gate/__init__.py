"""The release gate: a comparison and a policy make a verdict. Computes, and renders nothing."""
