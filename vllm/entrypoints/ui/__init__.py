"""The page that the server shows at `/`: its sources, and the one document made of them."""
