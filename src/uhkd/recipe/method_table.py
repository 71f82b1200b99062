"""The methods that come with the package, by name, in the order of tables; where each class stands below `uhkd.methods`."""

METHODS = {
    "scratch": "scratch:Scratch",
    "kd": "kd:KD",
    "dkd": "dkd:DKD",
    "dist": "dist:DIST",
    "fitnet": "fitnet:FitNet",
    "at": "at:AT",
    "cc": "cc:CC",
    "rkd": "rkd:RKD",
    "crd": "crd:CRD",
    "ofa": "ofa:OFA",
    "rsd": "rsd:RSD",
    "spectralkd": "spectralkd:SpectralKD",
    "twin_a": "spatial:TwinA",
    "twin_b": "spatial:TwinB",
    "uhkd": "uhkd:UHKD",
}
