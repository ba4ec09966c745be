"""Token streams to slices, slices to monitors, monitors to Findings; reads rows alone, of any trainer."""
