"""Metrics: a class for each, with the judge models that it needs and the scores that it gives."""

METRICS = {
    "clip_score": "clip:ClipScore",
    "long_clip_score": "clip:LongClipScore",
    "non_spatial": "clip:NonSpatial",
    "aesthetic": "clip:Aesthetic",
    "vqa_score": "questions:VQAScore",
    "blip_vqa": "questions:BlipVQA",
    "dpg": "questions:DPG",
    "spatial": "spatial:Spatial",
    "three_in_one": "three_in_one:ThreeInOne",
    "geneval": "geneval:GenEval",
    "fid": "fid:FID",
    "inception_score": "fid:InceptionScore",
    "miniature": "miniature:MiniatureJudge",
}
"""Key -> module and class. Modules are imported when their metric is used."""
