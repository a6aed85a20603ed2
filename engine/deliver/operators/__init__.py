"""The Chinese operators' protocols: codecs without I/O for SGIP 1.2, CMPP 2.0 and 3.0, SMGP 3.0.3; one session."""
