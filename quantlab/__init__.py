"""quantlab: in which precision may this model ship?"""
