"""Results for other tools: supervision, and COCO json for FiftyOne, CVAT and Label Studio."""
