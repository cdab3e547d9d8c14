"""Attribution: which torch module does an artifact compute wrongly?"""
