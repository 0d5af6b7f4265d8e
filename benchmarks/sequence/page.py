def write_page(results):
    return []
