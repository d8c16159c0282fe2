from vankit.models import van
