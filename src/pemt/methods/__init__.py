"""What a user could do with the same few labels, behind one interface.

A method builds a model on a base; training, selection and evaluation are shared by all.
"""

from pemt.methods.method import METHODS, Method, Setting, method_named

__all__ = ["METHODS", "Method", "Setting", "method_named"]
